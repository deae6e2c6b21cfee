"""A batch of images on the CPU: slices of it, each computed by a thread of its own from the first layer to the last.

Where all threads share every single operation, each operation waits for its slowest thread, thousands of times a batch,
and by far the longest where another process wants the processors, too. Slices wait for each other once a batch. Only a
slice's activations are in memory at a time, and as the batch is cut by its size alone, features do not depend on the
number of threads as long as there are no more threads than slices.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

MOST_PIXELS = 4 * 256 * 256
"""In a slice: a ViT's matrices then have 1,028 rows, enough for their full speed, and its activations are small."""


def cut_images(num_images: int, num_pixels: int) -> list[int]:
    """Cuts a batch into slices that differ by one image at most, an even number of them unless they are single images.

    Args:
        num_images: Of the batch, at least 1.
        num_pixels: Of an image.

    Returns:
        The size of each slice.

    Examples:
        >>> cut_images(64, 256 * 256) == [4] * 16
        True
        >>> cut_images(10, 256 * 256), cut_images(2, 256 * 256), cut_images(1, 256 * 256)
        ([3, 3, 2, 2], [1, 1], [1])
    """
    most_images = max(MOST_PIXELS // num_pixels, 1)
    num_slices = min(2 * -(-num_images // (2 * most_images)), num_images)
    each, more = divmod(num_images, num_slices)
    return [each + 1] * more + [each] * (num_slices - more)


class ImageSlices:
    """Computes a function of images slice by slice, as many at a time as torch has threads.

    The number of threads is that of the time when this was made; torch's own number is as it was after each call.
    """

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()
        # another backend cannot change its number of threads once it has computed
        self._can_set_threads = "OpenMP" in torch.__config__.parallel_info()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_started = 0

    def compute(
        self,
        function: Callable[[Tensor], Tensor],
        images: Tensor,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> Tensor:
        """Computes a function that treats each image by itself.

        Args:
            function: Images, (n, channels, height, width) → rows, (n, ...); called in several threads at a time.
            images: All of them.
            context: Makes what the function runs in, beside inference mode; contexts are a thread's own.

        Returns:
            The rows of all images.

        Raises:
            BaseException: Whatever the function raises; of several, that of the first slice.
        """
        parts = images.split(cut_images(len(images), images.shape[-2] * images.shape[-1]))
        at_once = min(self._num_threads, len(parts)) if self._can_set_threads else 1
        threads_each = self._num_threads // at_once
        todo: SimpleQueue[int] = SimpleQueue()
        for index in range(len(parts)):
            todo.put(index)
        results: dict[int, Tensor] = {}
        errors: dict[int, BaseException] = {}
        ended: SimpleQueue[None] = SimpleQueue()

        def work() -> None:
            index = -1
            try:
                with torch.inference_mode(), context():
                    while not errors:
                        try:
                            index = todo.get_nowait()
                        except Empty:
                            return
                        results[index] = function(parts[index])
            # raised in the thread that asked
            except BaseException as error:
                errors[index] = error

        def work_beside_others() -> None:
            try:
                torch.set_num_threads(threads_each)
                work()
            finally:
                ended.put(None)

        if at_once == 1:
            work()
        else:
            self._start(at_once)
            for _ in range(at_once):
                self._tasks.put(work_beside_others)
            try:
                for _ in range(at_once):
                    ended.get()
            except BaseException as error:
                # an interrupt: the others stop, too
                errors[-1] = error
                raise
            finally:
                # part of what a thread sets is the whole process's
                torch.set_num_threads(self._num_threads)
        if errors:
            raise errors[min(errors)]
        return torch.cat([results[index] for index in range(len(parts))])

    def _start(self, num_threads: int) -> None:
        if self._num_started == 0:
            weakref.finalize(self, _end, self._tasks, self._num_threads).atexit = False
        while self._num_started < num_threads:
            self._num_started += 1
            # a process that is told to stop does not wait for a batch
            name = f"embed slices {self._num_started}"
            threading.Thread(target=_serve, args=(self._tasks,), daemon=True, name=name).start()


def _serve(tasks: SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task


def _end(tasks: SimpleQueue[Callable[[], None] | None], num_threads: int) -> None:
    for _ in range(num_threads):
        tasks.put(None)
