"""Canary rounds say their replica, their effect and what carries the verdict."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("canary_runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("replica", sa.String(length=255), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("effect", sa.Double(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("evidence", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    with op.batch_alter_table("canary_runs", schema=None) as batch_op:
        for name in ("evidence", "effect", "replica"):
            batch_op.drop_column(name)
