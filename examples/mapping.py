"""One task over many inputs at once, on threads; then one task over all the results.

python mapping.py
"""

from orchestrator import flow, get_run_logger, task, unmapped


@task
def count_words(text: str, shortest: int) -> int:
    return sum(len(word) >= shortest for word in text.split())


@task
def summarise(counts: list[int]) -> int:
    get_run_logger().info("%s texts, %s words", len(counts), sum(counts))
    return sum(counts)


@flow
def word_count() -> int:
    texts = ["the quick brown fox", "jumps over", "the lazy dog"]
    # `shortest` is the same for all: unmapped. The futures go into the next task as they are.
    counts = count_words.map(texts, shortest=unmapped(4))
    return summarise(counts)


if __name__ == "__main__":
    word_count()
