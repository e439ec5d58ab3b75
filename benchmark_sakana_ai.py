"""Classic LoRA, Text-to-LoRA and Transformer² side by side, graded, as one report.

    python3 benchmark_sakana_ai.py [--quick] [--out DIR]

The same as `shoal benchmark`, which see for every flag.
"""

import sys

from shoal.apps.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "benchmark")
    main()
