"""`python -m grafalign`, also for `accelerate launch -m grafalign train CONFIG`."""

from grafalign.cli import main

if __name__ == '__main__':
    main()
