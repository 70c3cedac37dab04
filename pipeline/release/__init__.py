"""The decision whether a model version becomes champion."""
