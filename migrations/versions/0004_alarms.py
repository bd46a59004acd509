"""Alarms are called alarms."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXED = ("flagged_at", "kind")


def upgrade() -> None:
    _rename("episodes", "alarms")


def downgrade() -> None:
    _rename("alarms", "episodes")


def _rename(old: str, new: str) -> None:
    op.rename_table(old, new)
    for column in _INDEXED:
        op.drop_index(f"ix_{old}_{column}", table_name=new)
        op.create_index(f"ix_{new}_{column}", new, [column], unique=False)
