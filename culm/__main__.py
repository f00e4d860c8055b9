"""`python -m culm`, for programs that start `culm` with a Python of their own choice."""

from culm.cli import main

if __name__ == "__main__":
    main()
