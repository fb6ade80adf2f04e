# The wrong way of lesson 15: it works, and nothing else can be said for it. Built once, for data/image/build.json.
FROM python:latest
WORKDIR /app
COPY . .
RUN apt-get update && apt-get install -y libgl1 libglib2.0-0
RUN python -m venv /venv && /venv/bin/pip install -r requirements.lock
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app
CMD mlops-course serve --host 0.0.0.0
