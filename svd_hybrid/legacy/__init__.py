"""Reading artifacts in the original .pt layout, and converting them."""
