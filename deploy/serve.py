"The image's entry: the course's command line, without the packages that only training needs."
from mlops_course.absent import stub_missing_modules

stub_missing_modules()

from mlops_course.tools.cli import main  # noqa: E402 (after that)

main()
