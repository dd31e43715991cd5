"""The algorithms: pure functions only, one file per paper."""

OFFLINE = ("a2pr", "td3_bc", "iql", "bc")  # make(static, spec), trained on a Dataset
ONLINE = ("sac",)  # make(static, spec, env), trained on environment parameters
