"""Read photos and frames, detect faces, and align and measure them."""
