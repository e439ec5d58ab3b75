"""The command line for a process that another one holds, which ends with it (`shoal.process`).

    python -m shoal.apps.cli.child train lora --config settings.yaml

So the service runs a training.
"""

from shoal.apps.cli.main import main
from shoal.process import end_with_holder

if __name__ == "__main__":
    end_with_holder()
    main()
