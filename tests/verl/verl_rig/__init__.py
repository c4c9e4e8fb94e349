"""What verl needs to run for real on a CPU: a platform, a rollout engine, a tiny world.

Not below the package `tests`: verl's own wheel installs a package of that name.
"""
