"""The algorithms: pure functions only, one file or folder per paper."""

OFFLINE = (  # make(static, spec), trained on a Dataset
    "a2pr", "td3_bc", "iql", "bc", "psec_base", "psec_skill", "psec_compose",
)  # fmt: skip
ONLINE = (  # make(static, spec, env), trained on its parameters
    "sac", "task_allocation", "task_allocation_transfer", "task_allocation_plus", "allocation_solver",
    "barfi", "barfi_reinforce", "barfi_actor_critic",
)  # fmt: skip
FOLDERS = {  # of papers with several phases: the module of each
    "psec_base": "psec.base",
    "psec_skill": "psec.skill",
    "psec_compose": "psec.compose",
    "task_allocation": "task_allocation.train",
    "task_allocation_transfer": "task_allocation.transfer",
    "task_allocation_plus": "task_allocation.plus",
    "allocation_solver": "task_allocation.solver",
    "barfi": "barfi.train",
    "barfi_reinforce": "barfi.reinforce",
    "barfi_actor_critic": "barfi.actor_critic",
}
