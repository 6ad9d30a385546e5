#!/usr/bin/env python3
"""Makes deploy/demo/jobs.jsonl: the same jobs every time.

    python3 scripts/demo-jobs.py > deploy/demo/jobs.jsonl

3,600 jobs over 300 conversations, one of them hot; 110 jobs are sent a second time, up to 300 lines later.
Every appended element is unique, so that one that is lost or doubled can be named.
"""

import json
import random

JOBS, CONVERSATIONS, AGAIN, HOT_EVERY = 3600, 300, 110, 15
PAGES = ["start", "catalogue", "product", "basket", "checkout", "thanks"]

random.seed(20261123)
conversations = ["conv_%012x" % random.getrandbits(48) for _ in range(CONVERSATIONS)]


def variables(number):
    kind = random.random()
    if kind < 0.40:
        return {
            "visits": {"op": "increment"},
            "events": {"op": "append", "value": "e%d" % number},
        }
    if kind < 0.60:
        amount = "%d.%02d" % (random.randint(0, 90), random.randint(1, 99))
        return {"spent": {"op": "increment", "by": amount, "scope": "session"}}
    if kind < 0.75:
        return {"events": {"op": "append", "value": "e%d" % number}}
    if kind < 0.90:
        return {"last_page": {"value": random.choice(PAGES), "scope": "session"}}
    if kind < 0.95:
        return {"first_page": {"op": "set_if_absent", "value": random.choice(PAGES)}}
    return {
        "tier": {"value": random.choice(["basic", "plus", "premium"]), "scope": "user"},
        "greeting": {"template": "Welcome back, {{tier}} user."},
    }


lines = []
for number in range(JOBS):
    conversation = conversations[0] if number % HOT_EVERY == 0 else random.choice(conversations)
    job = {"job_id": "job-%04d" % number, "conversation_id": conversation, "variables": variables(number)}
    lines.append(json.dumps(job, separators=(",", ":")))

for place in sorted(random.sample(range(JOBS), AGAIN), reverse=True):
    lines.insert(min(place + random.randint(1, 300), len(lines)), lines[place])

print("\n".join(lines))
