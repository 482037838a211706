"""`python -m weighbridge` is `weigh`."""

from weighbridge.cli import main

if __name__ == "__main__":
    main()
