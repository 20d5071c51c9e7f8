"""Stage `sft`: supervised fine-tuning, causal language modelling on assistant turns."""

from drbode.config import SftConfig
from drbode.data.steps import StepLoader
from drbode.training.clm import CLMModule
from drbode.training.context import StageContext, Training, packed


def build(context: StageContext[SftConfig]) -> Training:
    loader = StepLoader(context.train.trees, context.config, context.run.seed)
    module = CLMModule(**context.module_options(len(loader)))
    return Training(loader, module, packed(context.validation, context.config.max_tokens))
