from llumnix.sim.cli import main

main()
