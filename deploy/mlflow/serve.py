"MLflow's server on PostgreSQL, in place of this process."
import os
from pathlib import Path
from urllib.parse import quote

password = quote(Path("/run/secrets/postgres").read_text(encoding="utf-8").strip(), safe="")
os.environ["MLFLOW_BACKEND_STORE_URI"] = f"postgresql://mlflow:{password}@postgres/mlflow"
os.execvp("mlflow", ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1",  # noqa: S104, S606 (inside the container)
                     "--artifacts-destination", "/artifacts", "--allowed-hosts", "localhost:5000,127.0.0.1:5000,mlflow:5000"])
