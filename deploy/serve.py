"The image's entry: the course's command line, without the packages that only training needs."
from mlops_course.absent import do_without

do_without()

from mlops_course.tools.cli import main  # noqa: E402 (after that)

main()
