"""python -m exporter"""

from exporter.command.cli import main

main()
