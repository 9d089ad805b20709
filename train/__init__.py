"""The training program: from a float network to an integer `.tflite` file and its report.

`python train/main.py --model=ac_resnet18 --bits=8` runs all stages; `pipeline.run(settings)`
is the same thing for programs.
"""
