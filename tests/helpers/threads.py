"""What set_num_threads leaves behind."""

import threading

import torch


def count_of_a_new_thread():
    """How many intra-op threads a thread has that is started now."""
    counts = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return counts[0]
