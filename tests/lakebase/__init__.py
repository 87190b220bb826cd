"""Databricks' Lakebase on this machine: a workspace's API, and a Postgres that its tokens open."""

from tests.lakebase.stand_in import LakebaseStandIn, lakebase_stand_in

__all__ = ["LakebaseStandIn", "lakebase_stand_in"]
