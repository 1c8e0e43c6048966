"""Rewards of answers: functions, services and reward models, called so that none can stop or harm the run."""
