"""The fixtures of the command line's tests, here too."""

from tests.cli.conftest import made as made
from tests.cli.conftest import project as project
from tests.cli.conftest import svdh as svdh
