"""Commands: the one place where generators, objectives, data and evaluation are joined. Nobody imports recipes."""
