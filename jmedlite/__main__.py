from jmedlite.cli.app import main

main()
