"""The wheel is whole: built from the tree, installed elsewhere, it finds its schemas and runs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, **kwargs) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the tracked tree only, so nothing lying about can get in."""
    source = tmp_path_factory.mktemp("source")
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-deps", "--quiet", "--wheel-dir", str(out), str(source))
    run(sys.executable, "-m", "pip", *build)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_package_and_the_schemas(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {p.relative_to(ROOT).as_posix() for p in (ROOT / "svd_hybrid").rglob("*.py")}
    assert packages <= names
    assert {"load_and_merge.py", "svd_hybrid/py.typed"} <= names
    assert {f"svd_hybrid/schemas/{p.name}" for p in (ROOT / "schemas").iterdir()} <= names


@pytest.mark.slow
def test_installed_wheel_verifies_and_reloads(wheel, tmp_path):
    """A clean environment with the wheel and, linked in, the dependencies this one already has."""
    environment = tmp_path / "env"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = environment / "bin" / "python"
    (site,) = (environment / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(dependencies_only(tmp_path), encoding="utf-8")
    golden, base = ROOT / "artifacts" / "golden-v1-hybrid", ROOT / "artifacts" / "golden-base"
    where = run(str(python), "-c", "import svd_hybrid; print(svd_hybrid.__file__)", cwd=tmp_path)
    assert str(site) in where
    verify = ("verify", "--artifact-dir", str(golden), "--base-model-path", str(base))
    assert run(str(python), "-m", "svd_hybrid", *verify, cwd=tmp_path).startswith("ok: ")
    reload = ("--artifact-dir", str(golden), "--base-model-path", str(base), "--output-path", "out")
    run(str(python), "-m", "svd_hybrid", "reload", *reload, cwd=tmp_path)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def dependencies_only(tmp_path: Path) -> str:
    """A folder that links this environment's packages except our own (editable) install."""
    links = tmp_path / "dependencies"
    links.mkdir()
    for entry in Path(next(p for p in sys.path if p.endswith("site-packages"))).iterdir():
        if "svd_hybrid" not in entry.name and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    return f"{links}\n"
