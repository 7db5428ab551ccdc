"""The help of the training command on one screen, which imports nothing of a training."""

from collections.abc import Sequence

TRAIN = """\
usage: condseg train --data PATH [--option value ...]
       condseg train --config NAME [--config NAME ...] [--option value ...]

Trains a model. --data alone chooses all options by the data and the machine, and prints them.
Otherwise the defaults are overridden by each --config file, in their order, and files by options.

  condseg train --data my/dataset                      # a folder with a COCO json and its images
  condseg train --data my.json --images my/images --init_from condinst_r50_3x
  condseg train --config quickstart                    # the sample data, in minutes on a CPU
  condseg train --config condinst_r50 --data.root data/coco --trainer.precision bf16-mixed
  condseg train --ckpt_path runs/quickstart/version_0/checkpoints/last.ckpt --trainer.max_steps 900

start:
  --data PATH                       folder of own images, or a json
  --images PATH                     folder of the json's images
  -c, --config NAME                 file, or name of a shipped one (quickstart, condinst_r50, ...)
  --init_from PATH                  checkpoint, or published model (condseg models), to start from
  --ckpt_path PATH                  checkpoint to resume; last; auto resumes the run or starts it
  --allow PACKAGE                   allow class paths of an own package, whose code then runs
run:
  --name NAME                       the run is in runs/NAME/version_0, version_1, ...
  --trainer.default_root_dir PATH   another folder than runs
  --trainer.max_steps N             steps of the training
  --trainer.val_check_interval N    steps between two validations
  --trainer.accelerator NAME        cpu, gpu, mps; --trainer.devices N
  --trainer.precision NAME          32-true, bf16-mixed, 16-mixed
  --seed_everything N               seed of all random numbers
data:
  --data.batch_size N               images of a step; --trainer.accumulate_grad_batches N
  --data.workers N                  processes that load images
  --data.short_sides [N,...]        sizes in training; --data.val_short_side N in validation
  --data.supervision NAME           masks, boxes (BoxInst), mixed
  --data.on_broken_image NAME       stop, skip; --data.check_images true reads all of them first
model:
  --model.network.backbone.name     resnet50, or a network of timm; --model.network.backbone.conv
  --model.optimizer CLASS           and its arguments, as --model.optimizer.init_args.lr 0.001
all:
  --help-all                        every option with type, default and help (docs/options.md)
  --model.optimizer.help CLASS      the arguments of a class, and so for each option that takes one
  --print_config                    print the configuration, and end
"""


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether the arguments of a command ask for its help."""
    return bool({"-h", "--help"} & set(args))
