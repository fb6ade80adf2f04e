"The image's entry: the course's command line, without the packages that only training needs."
import signal
import sys

from mlops_course.containers import do_without

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) # the first process of a container must say itself that it stops
do_without()

from mlops_course.tools.cli import main  # noqa: E402 (after that)

main()
