"""Generated normal traffic: arithmetic, e-mails, logs, orders as JSON, recipes and support tickets."""

from __future__ import annotations

import json
import random

from demo.exchange import Exchange, join_until

NAMES = (
    *("Alice", "Bruno", "Carla", "David", "Elena", "Felix", "Grace", "Henry", "Irene", "Jonas", "Karin", "Louis"),
    *("Maria", "Nadia", "Oscar", "Paula", "Quinn", "Rosa", "Simon", "Tessa", "Umar", "Vera", "Walter", "Yasmin"),
)
THINGS = (
    *("apples", "books", "pencils", "stamps", "tickets", "marbles", "bottles", "chairs", "stickers", "cookies"),
    *("candles", "oranges", "coins", "cards", "balloons", "seeds", "bricks", "shirts", "lamps", "flowers"),
)
PRODUCTS = (
    *("desk lamp", "office chair", "coffee grinder", "rain jacket", "water bottle", "wireless mouse", "travel bag"),
    *("kitchen scale", "bike helmet", "garden hose", "phone case", "running shoes", "wall clock", "bread knife"),
)


def arithmetic(random_: random.Random, characters: int) -> Exchange:
    """Write word problems of one person; the answer works out the last of them."""
    name = random_.choice(NAMES)
    working = ""

    def problem() -> str:
        nonlocal working
        text, working = _problem(random_, name)
        return text

    return Exchange(join_until(characters, " ", problem), working)


def _problem(random_: random.Random, name: str) -> tuple[str, str]:
    thing, other = random_.choice(THINGS), random_.choice([n for n in NAMES if n != name])
    a, b = random_.randint(12, 99), random_.randint(2, 11)
    kind = random_.randrange(5)
    if kind == 0:
        text = f"{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?"
        return text, f"{name} starts with {a} {thing} and gets {b} more. {a} + {b} = {a + b}. The answer is {a + b}."
    if kind == 1:
        text = f"{name} has {a} {thing} and gives {b} of them to {other}. How many {thing} are left?"
        return text, f"{name} starts with {a} {thing} and loses {b}. {a} - {b} = {a - b}. The answer is {a - b}."
    if kind == 2:
        text = f"There are {b} boxes with {a} {thing} in each box. How many {thing} are there in total?"
        return text, f"Each of the {b} boxes holds {a} {thing}. {b} * {a} = {a * b}. The answer is {a * b}."
    if kind == 3:
        text = f"{name} shares {a * b} {thing} equally among {b} friends. How many {thing} does each friend get?"
        return text, f"The {a * b} {thing} are split into {b} parts. {a * b} / {b} = {a}. The answer is {a}."
    text = f"A train travels {a} kilometres per hour for {b} hours. How far does {name} travel by train?"
    return text, f"Distance is speed times time. {a} * {b} = {a * b}. The answer is {a * b} kilometres."


TOPICS = (
    *("the quarterly report", "the budget for next year", "the new office plan", "the customer survey"),
    *("the training schedule", "the supplier contract", "the product launch", "the hiring plan", "the travel policy"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
REQUESTS = (
    "Could you please send me your comments on {topic} by {day}?",
    "I have attached the latest version of {topic} for your review.",
    "We need to decide on {topic} before the meeting on {day}.",
    "Would you be available for a short call about {topic} on {day} at {hour}:00?",
    "The team has finished its part of {topic} and is waiting for your approval.",
    "Let me know if you have any questions about {topic}.",
    "As discussed on {day}, {name} will take over {topic} from next week.",
    "I would like to move our meeting about {topic} from {day} to another day.",
    "Thank you for your help with {topic}, the feedback was very useful.",
    "{name} from the finance department asked for an update on {topic}.",
)


def emails(random_: random.Random, characters: int) -> Exchange:
    """Write an office e-mail; the answer is a short reply."""
    sender, receiver = random_.sample(NAMES, 2)
    topic, day = random_.choice(TOPICS), random_.choice(DAYS)

    def sentence() -> str:
        about = topic if random_.random() < 0.6 else random_.choice(TOPICS)
        return random_.choice(REQUESTS).format(
            topic=about, day=random_.choice(DAYS), hour=random_.randint(8, 17), name=random_.choice(NAMES)
        )

    body = join_until(characters - 60, " ", sentence)
    prompt = f"Subject: {topic[4:].capitalize()}\n\nDear {receiver},\n\n{body}\n\nBest regards,\n{sender}"
    promise = random_.choice(["send you my comments", "get back to you", "have an answer for you"])
    answer = f"Dear {sender},\n\nThank you for your message about {topic}. I will {promise} by {day}.\n\n"
    return Exchange(prompt, f"{answer}Best regards,\n{receiver}")


SERVICES = ("auth", "billing", "gateway", "scheduler", "search", "storage", "worker")
EVENTS = (
    ("INFO", "request completed method=GET path=/api/v1/items/{n} status=200 duration={d}ms"),
    ("INFO", "request completed method=POST path=/api/v1/orders status=201 duration={d}ms"),
    ("INFO", "connection opened peer=10.0.{b}.{c} port={p}"),
    ("INFO", "cache refreshed entries={n} duration={d}ms"),
    ("DEBUG", "heartbeat received node=node-{c} load=0.{b}"),
    ("WARN", "slow query table=orders rows={n} duration={d}ms"),
    ("WARN", "retry scheduled job={n} attempt={a} delay={d}ms"),
    ("ERROR", "connection refused peer=10.0.{b}.{c} port={p}"),
    ("ERROR", "request failed method=GET path=/api/v1/items/{n} status=500 duration={d}ms"),
)


def logs(random_: random.Random, characters: int) -> Exchange:
    """Write the log of a service; the answer counts its lines by level."""
    day, second = random_.randint(10, 28), random_.randint(0, 80000)
    levels: list[str] = []

    def line() -> str:
        nonlocal second
        second += random_.randint(0, 9)
        level, event = random_.choice(EVENTS)
        levels.append(level)
        fields = {"n": random_.randint(1000, 9999), "d": random_.randint(1, 900), "a": random_.randint(1, 5)}
        fields |= {"b": random_.randint(0, 99), "c": random_.randint(1, 99), "p": random_.choice([80, 443, 5432, 8080])}
        clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{random_.randint(0, 999):03}"
        return f"2026-03-{day} {clock} {level} [{random_.choice(SERVICES)}] {event.format(**fields)}"

    prompt = join_until(characters, "\n", line)
    counts = ", ".join(f"{levels.count(level)} {level}" for level in ("INFO", "DEBUG", "WARN", "ERROR"))
    verdict = "The errors need attention." if "ERROR" in levels else "Nothing needs attention."
    return Exchange(prompt, f"The log has {len(levels)} lines: {counts}. {verdict}")


def orders(random_: random.Random, characters: int) -> Exchange:
    """Write orders as JSON records; the answer says in words what the last one holds."""
    record: dict[str, object] = {}

    def line() -> str:
        record.update(_order(random_))
        return json.dumps(record)

    prompt = join_until(characters, "\n", line)
    answer = f"Order {record['order_id']} is {record['status']}. {record['customer']} pays {record['total']}."
    return Exchange(prompt, answer)


def _order(random_: random.Random) -> dict[str, object]:
    name = random_.choice(NAMES)
    price, quantity = random_.randint(500, 9900) / 100, random_.randint(1, 5)
    return {
        "order_id": random_.randint(10000, 99999),
        "customer": name,
        "email": f"{name.lower()}{random_.randint(1, 99)}@example.com",
        "items": [{"name": random_.choice(PRODUCTS), "quantity": quantity, "price": price}],
        "total": round(price * quantity, 2),
        "status": random_.choice(["pending", "paid", "shipped", "delivered", "cancelled"]),
        "express": random_.random() < 0.3,
    }


DISHES = ("vegetable soup", "tomato pasta", "apple pie", "mushroom risotto", "chicken curry", "lentil stew", "pancakes")
INGREDIENTS = (
    *("butter", "flour", "sugar", "olive oil", "onions", "garlic", "carrots", "tomatoes", "rice", "milk", "cream"),
    *("parsley", "mushrooms", "potatoes", "cinnamon", "lentils", "chicken", "pepper", "lemon juice", "cheese"),
)
MEASURES = ("{n} cups of", "{n} tablespoons of", "{n} teaspoons of", "{n}00 grams of", "a pinch of", "some fresh")
STEPS = (
    "Chop the {a} and fry it in {b} over medium heat for {n} minutes.",
    "Add the {a} and stir well until it is soft.",
    "Mix the {a} with the {b} in a large bowl.",
    "Bring to a boil, then simmer for {n}5 minutes with the lid on.",
    "Season with {a} and serve hot with {b} on top.",
    "Pour in the {a} and let it rest for {n}0 minutes.",
    "Bake in the oven at 1{n}0 degrees until golden brown.",
    "Slowly whisk the {a} into the {b} so that no lumps form.",
)


def recipes(random_: random.Random, characters: int) -> Exchange:
    """Write a dish with ingredients and steps; the answer goes on with the next steps."""
    dish = random_.choice(DISHES)
    chosen = random_.sample(INGREDIENTS, 4)
    amounts = [f"{random_.choice(MEASURES).format(n=random_.randint(2, 6))} {each}" for each in chosen]

    def step() -> str:
        a, b = random_.sample(INGREDIENTS, 2)
        return random_.choice(STEPS).format(a=a, b=b, n=random_.randint(2, 9))

    head = f"How do I cook {dish}? I have {', '.join(amounts[:-1])} and {amounts[-1]}."
    body = join_until(characters - len(head), " ", step)
    return Exchange(f"{head} {body}", f"{step()} {step()} Enjoy your {dish}!")


PROBLEMS = (
    "the {product} I ordered last {day} has not arrived yet",
    "the {product} arrived damaged and the box was open",
    "I was charged twice for the {product}",
    "I cannot log in to my account since {day}",
    "the discount code does not work for the {product}",
    "I received the wrong {product} in my package",
    "I want to return the {product} because it is too small",
    "the tracking page shows no update since {day}",
    "my {product} stopped working after two days",
)
OPENINGS = ("Hello, {problem}.", "Hi there, {problem}.", "Good morning, unfortunately {problem}.")
DETAILS = (
    "My order number is {n}.",
    "I already tried to call you but nobody answered.",
    "I would like a refund as soon as possible.",
    "Please tell me what I should do next.",
    "Also, {problem}.",
    "I have been a customer for {y} years and this never happened before.",
    "Can you send me a replacement before {day}?",
    "I paid with my credit card on {day}.",
)


def support(random_: random.Random, characters: int) -> Exchange:
    """Write a customer's complaint; the answer is the first line of support."""
    number, product = random_.randint(10000, 99999), random_.choice(PRODUCTS)

    def fill(template: str) -> str:
        problem = random_.choice(PROBLEMS).format(product=product, day=random_.choice(DAYS))
        return template.format(problem=problem, n=number, y=random_.randint(2, 9), day=random_.choice(DAYS))

    opening = fill(random_.choice(OPENINGS))
    prompt = f"{opening} {join_until(characters - len(opening), ' ', lambda: fill(random_.choice(DETAILS)))}"
    action = random_.choice(["sent a replacement", "started the refund", "asked the warehouse", "opened a ticket"])
    answer = f"I am sorry about the trouble with your {product}. I have {action} for you."
    return Exchange(prompt, f"{answer} You will hear from us by {random_.choice(DAYS)}. Is there anything else?")
