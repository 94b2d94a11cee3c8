"""targets/torch"""
