"""The algorithms: pure functions only, one file per paper."""

OFFLINE = ("a2pr",)
ONLINE = ("sac",)  # make(static, spec, env), trained on environment parameters
