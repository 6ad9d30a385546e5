"""The same work in the usual libraries of Python: aio-pika, httpx, pydantic, redis.

Like the floor it promises nothing. Arguments: AMQP, Redis, API, in flight, "read" or "write".
"""

import asyncio
import json
import sys
from typing import Any

import aio_pika
import httpx
import redis.asyncio as redis
from pydantic import BaseModel

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"


class Variable(BaseModel):
    op: str = "set"
    value: Any = None
    by: Any = None
    scope: str = "conversation"


class Job(BaseModel):
    job_id: str
    conversation_id: str
    variables: dict[str, Variable]


async def main(amqp: str, redis_url: str, api: str, in_flight: int, first: str) -> None:
    store = redis.from_url(redis_url, max_connections=in_flight)
    release = store.register_script(RELEASE)
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    http = httpx.AsyncClient(limits=limits, timeout=30, trust_env=False)
    token = (await http.post(f"{api}/api/v1/auth/token")).json()["access_token"]
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection = await aio_pika.connect(amqp)
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=in_flight)
    outcomes = await channel.get_exchange("context.outcomes", ensure=False)
    jobs = await channel.get_queue("context.jobs.default", ensure=False)

    async def write(job: Job) -> None:
        context = {
            key: {"value": v.value if v.op == "set" else v.by, "scope": v.scope} for key, v in job.variables.items()
        }
        body = json.dumps({"conversationId": job.conversation_id, "context": context})
        while True:
            version = 1
            if first == "read":
                state = await http.get(f"{api}/api/v1/context/{job.conversation_id}", headers=headers)
                version = state.json()["contextVersion"]
            answer = await http.patch(
                f"{api}/api/v1/context", headers={**headers, "if-match": str(version)}, content=body
            )
            if answer.status_code == 200:
                return
            if answer.status_code != 409:
                raise RuntimeError(f"the API answered {answer.status_code}")

    async def work(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        job = Job.model_validate_json(message.body)
        key = f"python:{job.conversation_id}"
        while not await store.set(key, job.job_id, nx=True, px=10_000):
            await asyncio.sleep(0.001)
        await write(job)
        await release(keys=[key], args=[job.job_id])
        data = {"job_id": job.job_id, "conversation_id": job.conversation_id, "verdict": "applied"}
        body = json.dumps({"type": "python.outcome", "data": data}, separators=(",", ":")).encode()
        event = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await outcomes.publish(event, routing_key="default.applied", mandatory=False)
        await message.ack()

    await jobs.consume(work)
    print("taking jobs")
    await asyncio.Future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]))
