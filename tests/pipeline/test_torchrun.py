import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from tests.pipeline.conftest import Workdir

NO_DROPOUT = ("--set", "model.dropout=0.0")
