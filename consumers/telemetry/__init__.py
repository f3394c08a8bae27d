"""What a process tells about itself: metrics, alarms, traces.

Rules:
* Nothing here changes what a process does. No name, label or attribute holds a client, a key or a text.
* What is told goes to monitoring, not to the store. Processes tell each other through `records/heartbeat`.
"""
