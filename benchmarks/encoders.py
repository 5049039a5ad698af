"""Images a second of encoders, beside a plain timm loop and this machine's matrix products.

The two loops run in turn, A B A B, on the same random pixels, with random weights, and their ratio
is taken pair by pair. The plain loop is what people write: timm's model, `forward_features`,
float32, no compiling. On a GPU ours is bf16 and compiled, as by default there.

    python benchmarks/encoders.py [--device auto] [--models dinov3-s,dinov3-b,dinov3-l]
                                  [--sides 224,256,512] [--pairs 9] [--cpu-gflop 75]
                                  [--precision bf16] [--compile]
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from dinocache.cost import default_batch, gflop
from dinocache.devices import can_compile, choose_device
from dinocache.encoders import encoder_spec
from dinocache.inference import Encoder, load_encoder
from dinocache.networks import build_network
from dinocache.spec import EncoderSpec


def seconds(
    work: Callable[..., object], device: torch.device, repeats: int, *given: object
) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    began = time.perf_counter()
    for _ in range(repeats):
        work(*given)
    synchronise()
    return (time.perf_counter() - began) / repeats


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best GFLOP/s of a large square product, of nine."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    repeats = 20 if device.type == "cuda" else 1
    best = min(seconds(torch.mm, device, repeats, a, b) for _ in range(9))
    return 2 * side**3 / best / 1e9


def plain_loop(spec: EncoderSpec, device: torch.device) -> Callable[[torch.Tensor], object]:
    model = build_network(spec).trunk.to(device).eval()

    def run(pixels: torch.Tensor) -> object:
        with torch.inference_mode():
            features = model.forward_features(pixels)
            if features.ndim == 4:
                return features.mean((2, 3))
            return features[:, 0], features[:, spec.prefix_tokens :].mean(1)

    return run


def our_loop(encoder: Encoder) -> Callable[[torch.Tensor], object]:
    return lambda pixels: encoder(pixels, encoder.spec.vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", default="dinov3-s,dinov3-b,dinov3-l")
    parser.add_argument("--sides", default="224,256,512")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--cpu-gflop", type=float, default=75, help="Of a pass on a CPU.")
    parser.add_argument("--precision", help="Default: bf16 on a GPU, fp32 elsewhere.")
    parser.add_argument("--compile", action="store_true", help="Also on a CPU.")
    options = parser.parse_args()
    device = torch.device(choose_device(options.device))
    on_gpu = device.type == "cuda"
    precision = options.precision or ("bf16" if on_gpu else "fp32")
    peak = matmul_peak(device, torch.bfloat16 if on_gpu else torch.float32)
    name = torch.cuda.get_device_name(device) if on_gpu else f"{os.cpu_count()} cores"
    print(
        f"{time.strftime('%Y-%m-%d')}, {name}, {platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {precision} matmul peak {peak:.0f} GFLOP/s\n"
    )
    print("| encoder | side | batch | images/s | of the peak | plain loop | ours / plain |")
    print("|---|---|---|---|---|---|---|")
    for model in options.models.split(","):
        spec = encoder_spec(model)
        plain = plain_loop(spec, device)
        compiled = options.compile or can_compile(str(device))
        ours = our_loop(
            load_encoder(spec, "random:0", device=device, precision=precision, compiled=compiled)
        )
        for side in (int(part) for part in options.sides.split(",")):
            cost = gflop(spec, (side, side)) or 1.0
            batch = default_batch(spec, (side, side))
            if not on_gpu:
                batch = max(1, min(batch, int(options.cpu_gflop / cost)))
            pixels = torch.randn(batch, 3, side, side, device=device)
            for loop in (ours, plain):  # compile, and fill caches
                loop(pixels)
                loop(pixels)
            repeats = 10 if on_gpu else 1
            pairs = [
                (
                    seconds(ours, device, repeats, pixels),
                    seconds(plain, device, repeats, pixels),
                )
                for _ in range(options.pairs)
            ]
            mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(
                f"| {model} | {side} | {batch} | {batch / mine:.2f} "
                f"| {batch * cost / mine / peak:.2f} | {batch / theirs:.2f} | {ratio:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
