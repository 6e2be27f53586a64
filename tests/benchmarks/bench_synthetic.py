"""Labelled samples per second and core of the synthetic humans. Run it with OMP_NUM_THREADS=1 on a quiet machine."""

import time

import torch

from sapiens_hf.synthetic import SyntheticHumans


def main() -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    SyntheticHumans(seed=3)[0]
    print(f"first sample after the imports: {time.perf_counter() - start:.1f} s")
    for size, count in (((256, 192), 40), ((1024, 768), 8)):
        for people in ((1, 1), (1, 4)):
            dataset = SyntheticHumans(seed=3, size=size, people=people)
            dataset[0]
            wall, cpu = time.perf_counter(), time.process_time()
            rows = sum(len(dataset[index]["boxes"]) for index in range(1, count + 1))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"{size[0]} x {size[1]}, {people[0]} to {people[1]} people ({rows / count:.2f} on average): "
                f"{count / wall:.1f} samples/s, {count / cpu:.1f} per second of CPU time"
            )


if __name__ == "__main__":
    main()
