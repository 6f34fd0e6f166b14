"""What is measured: this project, and what it is compared to, driven alike."""
