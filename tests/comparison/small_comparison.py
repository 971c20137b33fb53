"""The files of a comparison of models of a few thousand parameters."""

COMPARISON = """
include 'compare/comparison.gin'
include 'compare/zoo.gin'
include 'compare/parts/scaling.gin'
include 'compare/parts/long_context.gin'
include 'compare/parts/text_recall.gin'

TITLE = 'Tiny & quick'
MODELS = {{
  'Griffin': ['models/griffin.gin', '{folder}/pattern.gin'],
  'MQA Transformer': ['models/transformer.gin'],
}}
SIZES = {{'tiny': ['{folder}/size.gin', 'STEPS = 4']}}
SHARED = ['mesh/single.gin', 'kernels/auto.gin', '{folder}/text.gin']
SEEDS = (0, 1)
CONTEXT_SIZE = 'tiny'
CONTEXT_LENGTHS = (32,)
RECALL_SIZE = 'tiny'
HAYSTACKS = (64, 128)
PARTS = {{'scaling': %SCALING, 'long_context': %LONG_CONTEXT, 'needle': %NEEDLE}}
"""
TEXT = """
from __gin__ import dynamic_registration
from data import corpora
from data import dataset
from training import loop

include 'data/text_files_bytes.gin'
include 'train/steps.gin'

SEQUENCE_LENGTH = 32
BATCH_SIZE = 4
WARMUP_STEPS = 2
TEXT_FILES = '{folder}/*.txt'
corpora.TextFiles.heldout_fraction = 0.3
dataset.TextDataset.cache_dir = '{folder}/cache'
loop.LoopOptions.evaluate_every = 1
"""
SIZE = "WIDTH = 16\nRNN_WIDTH = 16\nHEADS = 2\nDEPTH = 2\n"
# Each kind of block once: a second recurrent block only takes longer to compile.
PATTERN = """
from __gin__ import dynamic_registration
from models import griffin

griffin.griffin.pattern = ('recurrent', 'attention')
"""
