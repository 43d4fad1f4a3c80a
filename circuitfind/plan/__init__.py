"""What a run would do: stages, passes, memory and time, and what is there already. Changes nothing on disk.

A plan is of a model that is loaded and timed, or of one that is not loaded, from its configuration alone.
"""

from circuitfind.plan.make import Plan, make_plan
from circuitfind.plan.memory import Memory
from circuitfind.plan.stages import StagePlan, foreseen
from circuitfind.plan.unloaded import Asked, Estimate

__all__ = ["Asked", "Estimate", "Memory", "Plan", "StagePlan", "foreseen", "make_plan"]
