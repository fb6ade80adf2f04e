"The image's health check: fails unless the service is ready."
import os
from urllib.request import urlopen

urlopen(f"http://127.0.0.1:{os.environ['MLOPS_COURSE_SERVICES__API__PORT']}/ready", timeout=2)
