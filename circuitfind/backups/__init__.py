"""Backup heads: what stands in when a component is removed, found without being told the primaries.

Steps, each a file: ``seeds`` (what to remove), ``screen`` (one ablated run for each set gives the compensation of every
component), ``verify`` (freezing and interaction, candidate by candidate), ``classes`` (the verdict), ``search`` (all of it).
``report`` is what comes out; it needs no torch. The method and its reasons: docs/backup-heads.md.
"""
