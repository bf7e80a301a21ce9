"""The engine: moves tenants between Postgres databases. It does not import Airflow."""
