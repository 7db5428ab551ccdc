"""Copies a few small cases of the golden folder into ``cases/``, which every checkout has.

Run it where the folder is: ``python tests/golden/commit_cases.py``.
"""

from __future__ import annotations

import json

import numpy as np
import vectors

CHOSEN = {
    "odconv.npz": ["k3_K4_b3_train_T31", "k1_K1_b3_eval", "k3_K4_dw_s2_b3_eval"],
    "dyconv.npz": ["K4_T1_g4_d2", "in3_K4_T1"],
    "condconv.npz": ["E4_dw_k3_s2", "E4_k1"],
    "dynet.npz": ["K4_k1", "K3_dw_s2"],
    "hdfnet.npz": ["denselayer", "hel_0", "hel_1"],
    "dmnet.npz": ["dcm_f3", "dcm_f4"],
    "dfn.npz": ["joint_k3", "shared_k5", "perchannel_k3", "global_k3"],
    "mask_head.npz": ["n7", "n7_norel", "aligned_bilinear_x4_4x6"],
    "mask_branch.npz": ["eval_nonorm"],
    "boxinst.npz": ["b"],
    "fcos.npz": ["one_empty_image", "infer_few", "ml_nms_40"],
}


def main() -> None:
    source = vectors.folder()
    if source is None:
        raise SystemExit("no golden folder: set CONDSEG_GOLDEN")
    vectors.COMMITTED.mkdir(exist_ok=True)
    for file, names in CHOSEN.items():
        with np.load(source / file) as arrays:
            meta = json.loads(str(arrays["meta.json"]))
            meta["cases"] = {name: meta["cases"][name] for name in names}
            kept = {key: arrays[key] for key in arrays.files if key.partition("/")[0] in names}
        target = vectors.COMMITTED / file
        np.savez_compressed(target, **{"meta.json": np.array(json.dumps(meta))}, **kept)
        print(f"{target.name}: {len(names)} cases, {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
