"""`python -m shoal`, as `torchrun` starts it too: the command line."""

from shoal.apps.cli.main import main

if __name__ == "__main__":
    main()
