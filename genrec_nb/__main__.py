"python -m genrec_nb: the same as the `genrec` command"
from .cli import main

if __name__ == '__main__': main()
