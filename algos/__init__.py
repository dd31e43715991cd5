"""The algorithms: pure functions only, one file or folder per paper."""

OFFLINE = (  # make(static, spec), trained on a Dataset
    "a2pr", "td3_bc", "iql", "bc", "psec_base", "psec_skill", "psec_compose",
)  # fmt: skip
ONLINE = (  # make(static, spec, env), trained on its parameters
    "sac", "task_allocation", "task_allocation_transfer", "task_allocation_plus", "allocation_solver",
    "barfi", "barfi_reinforce", "barfi_actor_critic", "barfi_ppo", "mra", "mra_reptile", "mra_maddpg",
    "mra_maac", "drqv2", "adaptive_rr", "adaptive_rr_sac",
)  # fmt: skip
FOLDERS = {  # of papers in folders: the module of each
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
    "barfi_ppo": "barfi.ppo",
    "mra": "mra.train",
    "mra_reptile": "mra.reptile",
    "mra_maddpg": "mra.maddpg",
    "mra_maac": "mra.maac",
    "drqv2": "drqv2.train",
    "adaptive_rr": "adaptive_rr.drqv2",
    "adaptive_rr_sac": "adaptive_rr.sac",
}
