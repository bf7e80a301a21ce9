"""The engine of Tenantferry: moves tenants between Postgres databases. It does not import Airflow."""
