"""Agents with a memory, trained by advantage actor-critic: the Pong network of the STM paper, and a small task that needs a memory.

Needs the extra ``rl`` (Gymnasium, and ``ale-py`` with the Atari emulator and its games). ``scripts/train_agent.py`` is the command.
"""

from fewshot_nam.sequences.reinforcement import environments
from fewshot_nam.sequences.reinforcement.agent import MODELS, Agent
from fewshot_nam.sequences.reinforcement.evaluation import evaluate_agent, load_agent
from fewshot_nam.sequences.reinforcement.settings import AgentSettings, agent_preset
from fewshot_nam.sequences.reinforcement.training import train_agent

__all__ = [
    "MODELS",
    "Agent",
    "AgentSettings",
    "agent_preset",
    "environments",
    "evaluate_agent",
    "load_agent",
    "train_agent",
]
