from jmedlite.cli import main

main()
