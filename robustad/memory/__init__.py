"""Memory: reverse mode that fits."""

from robustad.memory._accumulate import accumulate_gradients as accumulate_gradients
from robustad.memory._hvp import hvp as hvp
from robustad.memory._jacobian import jacobian as jacobian
from robustad.memory._scan import checkpointed_scan as checkpointed_scan
from robustad.memory._schedule import Action as Action
from robustad.memory._schedule import Schedule as Schedule
from robustad.memory._schedule import revolve_schedule as revolve_schedule
from robustad.memory._while import checkpointed_while as checkpointed_while
